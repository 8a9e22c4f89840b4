"""Turn the command line into calls, and errors into messages and exit codes. Nothing heavy is imported here."""
