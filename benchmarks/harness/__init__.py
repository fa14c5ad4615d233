"""What the benchmark programs share: start a server, load it, time the bare engine, and write down what came out."""
