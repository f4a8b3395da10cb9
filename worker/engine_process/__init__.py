"""The engine process: its main module, the messages that cross its pipe, and the worker's handle on it."""
