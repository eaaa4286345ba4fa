// What this library was built from, for `iact info`.
extern "C" __attribute__((visibility("default"))) const char* iact_build() { return IACT_BUILD; }
