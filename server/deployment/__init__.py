"""The coordinator as a service: its folder, its platforms, the gate, and Flower's processes."""
