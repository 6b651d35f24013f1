#include "engines/interp/host_thunk.hpp"

#include <algorithm>
#include <cstring>

#include "engines/interp/host_thunk_emit.hpp"

namespace strata::interp {

ThunkCache::ThunkCache(std::size_t bytes, std::size_t reserve)
    : arena_{bytes}, reserve_{std::min(reserve, bytes)} {}

const HostThunk* ThunkCache::insert(const Key& key, const ThunkForm& form, bool patched) {
  const ThunkCode code = emit_thunk(form);
  HostThunk thunk;
  thunk.form = form;
  thunk.code = arena_.append(code.span());
  thunk.code_size = code.size;
  thunk.immediate_at = patched ? code.immediate_at : std::uint16_t{0};
  if (thunk.code == nullptr) return nullptr;
  return &thunks_.emplace(key, thunk).first->second;
}

const HostThunk* ThunkCache::find(const ThunkForm& form) {
  Key key{};
  std::copy_n(form.bytes.begin(), form.size, key.begin());
  key[15] = static_cast<std::uint8_t>(unsigned{form.size} << 2 | static_cast<unsigned>(form.kind));
  const std::scoped_lock guard{lock_};
  if (const auto it = thunks_.find(key); it != thunks_.end()) return &it->second;
  if (form.immediate_at == 0) return insert(key, form, false);
  if (arena_.size() - arena_.used() > reserve_) return insert(key, form, false);
  key[form.immediate_at] = 0;
  key[14] = 1;  // no form is 15 bytes long: marks the one that stands for every immediate
  if (const auto it = thunks_.find(key); it != thunks_.end()) return &it->second;
  return insert(key, form, true);
}

std::uint32_t ThunkCache::run_patched(const HostThunk& thunk, std::uint8_t immediate,
                                      const std::array<void*, 4>& v, ThunkFrame* frame,
                                      void* memory) {
  std::array<std::byte, ThunkArena::kScratchBytes> code;
  std::copy_n(thunk.code, thunk.code_size, code.begin());
  code[thunk.immediate_at] = std::byte{immediate};
  const std::scoped_lock guard{lock_};
  HostThunk copy;
  copy.code = arena_.scratch(std::span{code}.first(thunk.code_size));
  return copy.vector()(v[0], v[1], v[3], v[2], frame, memory);
}

bool ThunkCache::holds(std::uint64_t imm) const {
  const std::scoped_lock guard{lock_};
  return std::ranges::any_of(thunks_, [imm](const auto& known) {
    return reinterpret_cast<std::uintptr_t>(&known.second) == imm;
  });
}

std::size_t ThunkCache::bytes() const {
  const std::scoped_lock guard{lock_};
  return arena_.used();
}

ThunkCache& thunk_cache() {
  static ThunkCache cache;
  return cache;
}

}  // namespace strata::interp
