// The result of a function of the C++ files: null, or a message that the caller frees with `tcp_free_message`. No C++
// exception leaves them.

#pragma once

#include <c10/util/Exception.h>

#include <cstdlib>
#include <cstring>
#include <exception>
#include <stdexcept>
#include <string>

inline char out_of_memory[] = "out of memory";

inline char *message(const char *text) noexcept {
  char *copy = strdup(text);
  return copy ? copy : out_of_memory;
}

inline void free_message(char *text) noexcept {
  if (text != out_of_memory)
    free(text);
}

// Runs `work`, and returns the message of what it throws.
template <class Work> char *guarded(Work &&work) noexcept {
  try {
    work();
    return nullptr;
  } catch (const c10::Error &e) {
    return message(e.what_without_backtrace());
  } catch (const std::exception &e) {
    return message(e.what());
  } catch (...) {
    return message("an unknown C++ exception");
  }
}

inline void require(bool condition, const std::string &text) {
  if (!condition)
    throw std::runtime_error(text);
}
