"""How good the picture gets: metrics, reference restorers, tables and plots behind ``vsdiqp evaluate``."""
