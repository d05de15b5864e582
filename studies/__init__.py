"""Studies of the method with this library, each in a folder of its own."""
