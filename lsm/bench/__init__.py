"""Cross-backend benchmark runs: every backend and peer, speed beside error beside the machine's limit."""
