"""Matrix products, attention and other layers in C++ for CPUs, compiled where they run. torch is the fallback."""
