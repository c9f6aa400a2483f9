"""Matrix products, attention and other layers on a CPU in C++, compiled where it runs. torch does the same, slower."""
