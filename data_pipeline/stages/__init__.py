"""Plain callables that measure, judge or encode; none of them knows Ray."""
