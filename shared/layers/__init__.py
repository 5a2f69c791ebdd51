"""A layer with its adapter: the reference path first, then the faster ways through it."""
