"""Run the command line as `python -m gmcli`."""

from gmcli.cli.main import main

if __name__ == "__main__":
    main()
