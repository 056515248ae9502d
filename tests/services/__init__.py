"""Services that tests start: databases, an S3 server, a proxy."""
