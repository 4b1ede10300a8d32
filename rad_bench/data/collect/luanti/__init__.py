"""Luanti: its engine without a screen, our mods for it, and the collection of episodes."""
