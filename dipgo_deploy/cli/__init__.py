"""The command line: one thin file for each command, which parses, calls one library function and prints."""
