// What the compiler calls for assignments of structures.
extern "C" void* memset(void* to, int value, unsigned long bytes) {
  auto* at = static_cast<volatile unsigned char*>(to);
  for (unsigned long i = 0; i < bytes; ++i) at[i] = static_cast<unsigned char>(value);
  return to;
}
extern "C" void* memcpy(void* to, const void* from, unsigned long bytes) {
  auto* at = static_cast<volatile unsigned char*>(to);
  const auto* source = static_cast<const unsigned char*>(from);
  for (unsigned long i = 0; i < bytes; ++i) at[i] = source[i];
  return to;
}
