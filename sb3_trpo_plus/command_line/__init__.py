"""The ``sb3-trpo-plus`` command."""
