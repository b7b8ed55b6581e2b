"""What a fork may delete: each folder with its tests, configs and docs. The core never imports from here."""
