/* What the headers of a Linux libwebsockets ask for and macOS has not: see `make macos`. */
typedef int cap_value_t;
