"""What ops do on the host around a kernel: arrays, checks, addresses for native code, the driver and its launches."""
