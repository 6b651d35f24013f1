// COM1, polled.
#pragma once

#include <cstdint>

namespace guest {

void console_init();
void put(char c);
void print(const char* text);
void print_number(std::uint64_t value);
void print_hex(std::uint64_t value);
/// Waits for a character.
[[nodiscard]] char get();
/// Whether `text` begins with `prefix`.
[[nodiscard]] bool starts_with(const char* text, const char* prefix);
[[nodiscard]] bool equal(const char* a, const char* b);

}  // namespace guest
