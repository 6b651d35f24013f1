#pragma once

namespace guest {

/// Runs every check, prints a line for each and a sum; returns the number that failed. A check is
/// left out if `words` has the word skip=NAME, with '-' for the spaces of its name.
unsigned run_checks(const char* words);

}  // namespace guest
