"""What several test packages share: servers, proxies, stores, child processes."""
