"""Where models are, and how they come onto a device."""
