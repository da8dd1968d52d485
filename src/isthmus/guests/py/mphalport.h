/* mphalport.h: MicroPython asks for this file; a guest has no pins, timers or interrupts. */
