// The DSDT's definition block, without its table header. Internal to this folder.
#pragma once

#include "boot/acpi.hpp"
#include "boot/aml.hpp"

namespace strata::boot {

[[nodiscard]] aml::Bytes dsdt_body(const AcpiOptions& options);

}  // namespace strata::boot
