"""What gmcli is built on: locked versions, licences, known vulnerabilities. Run by `make lock`, `licences` and `audit`."""
