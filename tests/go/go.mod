module recmar/client

go 1.21
