"""What deploys and watches us: the manifests as data, and a real Prometheus."""
