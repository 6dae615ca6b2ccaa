"""How long steps take by the data sheet of a device, for plans and for engines that could not measure."""
