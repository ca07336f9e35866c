"""Flow matching: conventions, sigma laws, samplers and guidance."""
