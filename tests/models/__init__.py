"""Networks that the tests share: tiny nets, families of transformers, models with quirks."""
