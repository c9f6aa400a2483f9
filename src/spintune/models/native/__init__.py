"""Attention on a CPU in C++, compiled where it runs; everything that it does, torch does as well, slower."""
