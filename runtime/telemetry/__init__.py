"""Energy and memory of a measurement, from the sensors that the machine has."""
