"""What every room shares: settings, logs, clocks, files, HTTP manners and discovery. Imports no room."""

__version__ = "0.1.0"
