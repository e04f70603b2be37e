"""The command line: one thin file per command that parses, calls one library function and prints."""
