"""Questions to the library and the device: which ways of computing change no bit."""
