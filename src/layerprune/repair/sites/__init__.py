"""Sites of repair: layers whose weights reach a tensor linearly."""
