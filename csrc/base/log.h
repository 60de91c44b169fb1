// SPDX-License-Identifier: BSD-3-Clause
//
// Libraries do not print. What they have to say goes to one sink that the program sets; without a
// sink it is dropped. Nothing on the IO path logs per request.
#ifndef CG_BASE_LOG_H
#define CG_BASE_LOG_H

enum cg_log_level {
    CG_LOG_DEBUG = 0,
    CG_LOG_INFO = 1,
    CG_LOG_WARNING = 2,
    CG_LOG_ERROR = 3,
};

// Receives one line without a newline, at most CG_LOG_LINE_MAX bytes. May be called from any
// thread, also from several at once.
typedef void (*cg_log_sink)(void *context, enum cg_log_level level, const char *line);

#define CG_LOG_LINE_MAX 1024

// Sets the sink and the lowest level that reaches it. Call before the first reactor thread starts.
void cg_log_set_sink(cg_log_sink sink, void *context, enum cg_log_level lowest);

// Formats and hands a line to the sink. Any thread.
void cg_log(enum cg_log_level level, const char *format, ...) __attribute__((format(printf, 2, 3)));

#endif
