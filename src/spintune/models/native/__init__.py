"""Attention and other layers on a CPU in C++, compiled where it runs. All that it does, torch does as well, slower."""
