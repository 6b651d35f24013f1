#include "network/net_options.hpp"

#include <arpa/inet.h>
#include <fmt/format.h>
#include <net/if.h>

#include <charconv>

namespace strata::network {

namespace {

template <class... Arguments>
Unexpected<LinkError> bad(fmt::format_string<Arguments...> format, Arguments&&... arguments) {
  return {LinkError{fmt::format(format, std::forward<Arguments>(arguments)...)}};
}

/// Text up to `separator`, which is removed from `text` with it; all of it if there is none.
std::string_view take_until(std::string_view& text, char separator) {
  const std::size_t at = text.find(separator);
  const std::string_view part = text.substr(0, at);
  text = at == std::string_view::npos ? std::string_view{} : text.substr(at + 1);
  return part;
}

bool take_address(std::string_view text, in_addr_t preset, in_addr& out) {
  out.s_addr = preset;
  return text.empty() || ::inet_pton(AF_INET, std::string{text}.c_str(), &out) == 1;
}

bool take_port(std::string_view text, std::uint16_t& out) {
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), out);
  return error == std::errc{} && end == text.data() + text.size() && out != 0;
}

Expected<Forward, LinkError> parse_forward(std::string_view text) {
  std::string_view guest = text;
  std::string_view host = take_until(guest, '-');
  Forward forward;
  const std::string_view protocol = take_until(host, ':');
  forward.udp = protocol == "udp";
  const std::string_view host_address = take_until(host, ':');
  const std::string_view guest_address = take_until(guest, ':');
  // The host's own programs only, unless the user says otherwise.
  if ((protocol == "tcp" || protocol == "udp") &&
      take_address(host_address, htonl(INADDR_LOOPBACK), forward.host) &&
      take_port(host, forward.host_port) && take_address(guest_address, 0, forward.guest) &&
      take_port(guest, forward.guest_port)) {
    return forward;
  }
  return bad("'hostfwd={}' is not of the form hostfwd=tcp:[ADDRESS]:PORT-[GUEST]:PORT", text);
}

Expected<void, LinkError> take_user_option(std::string_view key, std::string_view value,
                                           std::string_view item, NetOptions& options) {
  if (key == "hostfwd") {
    const auto forward = parse_forward(value);
    if (!forward) return Unexpected{forward.error()};
    options.forwards.push_back(*forward);
    return {};
  }
  if (item == "restrict") {
    options.restricted = true;
    return {};
  }
  return bad("unknown option '{}'; user has hostfwd=, restrict and mac=", item);
}

Expected<void, LinkError> take_option(std::string_view item, NetOptions& options) {
  std::string_view value = item;
  const std::string_view key = take_until(value, '=');
  if (key == "mac") {
    options.mac = MacAddress::parse(value);
    if (options.mac) return {};
    return bad("'{}' is not the address of a card, such as 52:54:00:12:34:56", value);
  }
  if (!options.tap.empty()) return bad("unknown option '{}'; tap=INTERFACE has mac= only", item);
  return take_user_option(key, value, item, options);
}

}  // namespace

Expected<NetOptions, LinkError> parse_net(std::string_view text) {
  NetOptions options;
  std::string_view rest = text;
  std::string_view name = take_until(rest, ',');
  if (const std::string_view kind = take_until(name, '='); kind == "tap") {
    if (name.empty() || name.size() >= IFNAMSIZ) {
      return bad("'{}' is not the name of an interface", name);
    }
    options.tap = name;
  } else if (kind != "user" || !name.empty()) {
    return bad("'{}' is not user or tap=INTERFACE", text);
  }
  while (!rest.empty()) {
    if (const auto done = take_option(take_until(rest, ','), options); !done) {
      return Unexpected{done.error()};
    }
  }
  return options;
}

}  // namespace strata::network
