"""The registry's HTTP side: parse, one call, render."""
