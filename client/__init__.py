"""Everything that runs inside one platform: the only room that ever sees a row."""
