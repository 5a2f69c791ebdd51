"""How platforms' adapters become a global adapter: no files, no Flower start-up."""
