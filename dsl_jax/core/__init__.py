"""Pure mathematics: sphere, channel, paths, laws, vocabulary contractions."""
