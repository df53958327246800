"""The mlx backend."""
