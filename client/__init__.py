"""Everything that runs inside one platform: the only code that ever sees a row."""
