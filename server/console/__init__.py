"""The coordinator's page: what its operators look at in a browser of its own machine."""
