"""What the bundle ships to a platform beside `client.app`: it carries requests to the worker."""
