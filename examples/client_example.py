#!/usr/bin/env python3
"""Shows the Python client: the health of the server, the model that it serves, and three generations.

python examples/client_example.py [URL]
"""

from __future__ import annotations

import sys

from celeriac import CeleriacError, InferenceClient


def main(url: str) -> None:
    """Send some requests to the server at `url`, and print the answers."""
    with InferenceClient(url) as client:
        health = client.health()
        print(f"Server   {health['status']}, model loaded: {health['model_loaded']}")

        info = client.info()
        loss = "unknown" if info["val_loss"] is None else f"{info['val_loss']:.4f}"
        print(f"Model    {info['checkpoint']}, step {info['step']}, validation loss {loss}")
        print(f"         {info['model_layers']} layers of width {info['model_dim']}, {info['vocab_size']} ids")

        # Temperature 0 always takes the most likely token, so the answer is always the same.
        result = client.generate("123+456=", max_tokens=20, temperature=0.0)
        show("Greedy", result["generated_text"], result["tokens_generated"])

        # Samples one of the ten most likely tokens each time, so the answer differs from run to run.
        result = client.generate("H+", max_tokens=50, temperature=0.8, top_k=10)
        show("Sampled", result["generated_text"], result["tokens_generated"])

        # The text ends after its first newline.
        result = client.generate("0+", max_tokens=100, temperature=0.5, stop_on_newline=True)
        show("One line", result["generated_text"], result["tokens_generated"])


def show(name: str, text: str, tokens: int) -> None:
    """Print one generation. `repr` keeps a text with newlines on one line."""
    print(f"{name:<8} {text!r}, {tokens} tokens generated")


if __name__ == "__main__":
    try:
        main(sys.argv[1] if len(sys.argv) > 1 else "http://127.0.0.1:8000")
    except CeleriacError as error:
        sys.exit(f"Error: {error}")
