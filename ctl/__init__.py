"""The operator's command, `svcctl`."""
