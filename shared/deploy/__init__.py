"""What service managers run Fedfuse with: systemd units, Compose files, an image, Helm charts."""
